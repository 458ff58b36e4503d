"""Devices that attack what they take part in, by name: docs/simulate.md lists them.

    kinds.py      names and settings, as an experiment's file has them
    results.py    what a device makes of its own honest result
    poison.py     what it makes of its examples before it trains
    colluding.py  what it makes of all honest devices' results, which it knows
    protocol.py   what it says that an agent would never say: with its own key, through the production code
    attackers.py  who does what in one run

Those that lie about what they learnt go through the task's codec with error feedback, as everybody does. The gateway
is told nothing: what it meets is its own code's to deal with.
"""

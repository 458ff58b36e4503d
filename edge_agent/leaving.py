"""What may leave the device: this list, and nothing else. No message in it has a place for an example or a label.

Whatever publishes asks here first, so that what is added elsewhere stays inside until it is added here; a test finds
every `publish` of this package. The connection to the sensors' broker has none (`sensors.py`). The last will is a
`DeviceState`.
"""

from collections.abc import Mapping

from fl_protocol.codec import decode, decode_as
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import (
    Chunk,
    CommandProgress,
    DeviceEvent,
    DeviceInfo,
    DeviceState,
    Enroll,
    Envelope,
    Get,
    Health,
    Message,
    Offer,
    Prediction,
    Renew,
    Reported,
    SlotAnswer,
    Update,
    Want,
)
from fl_protocol.topics import Kind, parse

LEAVING: Mapping[Kind, type[Message]] = {
    Kind.STATE: DeviceState,
    Kind.INFO: DeviceInfo,
    Kind.HEALTH: Health,
    Kind.EVENT: DeviceEvent,
    Kind.REPORTED: Reported,
    Kind.DEVICE_COMMAND: CommandProgress,  # with lines of the log that were marked for it: see logs.py
    Kind.PREDICTION: Prediction,  # a label; a number, which may be close to a measured one, only if `tell_numbers`
    Kind.UPDATE: Envelope,  # signed by the device, with an update in it
    Kind.OFFER: Offer,
    Kind.CHUNK_UP: Chunk,  # of such an envelope
    Kind.GET: Get,
    Kind.WANT: Want,
    Kind.SLOT_ANSWER: SlotAnswer,
    Kind.ENROLL: Enroll,
    Kind.RENEW: Renew,
}


def check_leaving(topic: str, message: Message | bytes) -> None:
    """Raises `ProtocolError(E_SCHEMA)` for a topic that is not in the list, or for what is not its message.

    Nor may the message have fields of a later schema: nobody knows what is in those.
    """
    kind = parse(topic).kind
    allowed = LEAVING.get(kind)
    if allowed is None:
        raise _refused(kind.name)
    said = decode(kind, message) if isinstance(message, bytes) else message  # a command's topic has two messages
    if type(said) is not allowed or said.extra:
        raise _refused(f"{type(said).__name__} on {kind.name}")
    if isinstance(said, Envelope) and decode_as(Update, said.body).extra:
        raise _refused("an update with more than an update")


def _refused(what: str) -> ProtocolError:
    return ProtocolError(Code.SCHEMA, f"{what} is not on the list of what may leave the device")

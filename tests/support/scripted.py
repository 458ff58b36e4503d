"""A server that says exactly what a test tells it to: for brokers that are wrong in ways mosquitto is not."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

Answer = Callable[[bytes], bytes | None]


class ScriptedServer:
    """Answers the first bytes of each connection with `answer(them)`: None closes it, empty bytes say nothing."""

    def __init__(self, answer: Answer) -> None:
        self.connections = 0
        self._answer = answer
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="scripted", daemon=True)
        self._thread.start()

    def drop(self) -> None:
        """Close the latest connection that was answered."""
        self._open.pop().close()

    def close(self) -> None:
        """End listener, connections and thread."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for connection in self._open:
            connection.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                connection.settimeout(5)
                said = connection.recv(4096)
                answer = self._answer(said)
                if answer is None:
                    connection.close()
                else:
                    self._open.append(connection)  # first: whoever has the answer may drop the connection
                    connection.sendall(answer)


def protocol_level(connect: bytes) -> int:
    """The protocol level in a CONNECT packet: 4 for MQTT 3.1.1, 5 for MQTT 5."""
    return connect[connect.index(b"MQTT") + 4]

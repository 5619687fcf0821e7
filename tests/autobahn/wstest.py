"""Run ``wstest`` with its text messages sent as binary ones: for Python 2.7, which it needs.

A keepstep server takes binary messages only. With the opcode changed as a frame leaves and as the echo comes back, the
cases that happen to use text, most of those on framing, fragments and closing, mean what their authors meant.
"""

from autobahntestsuite import fuzzing, wstest

TEXT, BINARY = 1, 2
Client = fuzzing.FuzzingClientProtocol
send_frame, on_message = Client.sendFrame, Client.onMessage


def send_binary(self, opcode, *args, **kwargs):
    """As ``sendFrame``; remembers that the case speaks text."""
    if opcode == TEXT:
        self.runCase.speaks_text = True
        opcode = BINARY
    return send_frame(self, opcode, *args, **kwargs)


def take_binary(self, payload, is_binary):
    """As ``onMessage``; what came is text to a case that speaks text."""
    on_message(self, payload, is_binary and not getattr(self.runCase, "speaks_text", False))


Client.sendFrame, Client.onMessage = send_binary, take_binary
wstest.run()

"""``python -m examples.rest``: a device over REST.

``notes DEVICE_FILE STREAM TEXT`` publishes a text and prints what the stream holds: a whole program.
``sign DEVICE_FILE STREAM TEXT`` and ``open DEVICE_FILE`` are for session.sh: what curl cannot do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from examples.rest.opening import open_page
from keepstep.client import blocking
from keepstep.client.restdevice import open_rest_device
from keepstep.errors import KeepstepError


def notes(device_file: Path, stream: str, text: str) -> None:
    """Authenticate, publish a signed and encrypted event, read the stream back, verified and decrypted."""
    with blocking.open_rest_device(device_file) as device:
        receipt = device.publish(stream, text.encode())
        print(f"published as {receipt.seq}")
        for event in device.read(stream):
            print(event.seq, (event.data or b"").decode())


async def sign(device_file: Path, stream: str, text: str) -> None:
    """Print the body that publishes an event."""
    async with open_rest_device(device_file) as device:
        print((await device.sign(stream, text.encode())).decode())


def main(arguments: list[str]) -> int:
    """One of the three."""
    try:
        match arguments:
            case ["notes", device_file, stream, text]:
                notes(Path(device_file), stream, text)
            case ["sign", device_file, stream, text]:
                trio.run(sign, Path(device_file), stream, text)
            case ["open", device_file]:
                for seq, plaintext in open_page(Path(device_file), sys.stdin.buffer.read()):
                    print(seq, plaintext.decode())
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except KeepstepError as error:
        print(f"examples.rest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

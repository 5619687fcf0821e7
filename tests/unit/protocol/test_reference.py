"""docs/reference/protocol.md and handshake.vp against the code: numbers, labels, and what is hashed in which order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from keepstep.client import crypto, livesealing
from keepstep.protocol import (
    account,
    account_payloads,
    chain,
    challenge,
    event,
    keys,
    linking,
    messages,
    receipt,
    rewind,
    succession,
    transcript,
)
from keepstep.protocol.messages import ClientAuth, ClientHello, FromDevice, FromServer, Ready, ServerHello
from tests.support.events import seed
from tests.support.handshakes import SERVER_KEY, make_client, make_server

REFERENCE: Final = Path(__file__).resolve().parents[3] / "docs" / "reference"
PROTOCOL: Final = (REFERENCE / "protocol.md").read_text(encoding="utf-8")
MODEL: Final = (REFERENCE / "handshake.vp").read_text(encoding="utf-8")


def words(name: str) -> str:
    """``CaughtUp`` as the document writes it."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower().removeprefix("server_")


@pytest.mark.parametrize("struct", get_args(FromDevice) + get_args(FromServer), ids=lambda each: each.__name__)
def test_every_message_is_in_the_tables_under_its_number(struct: Any) -> None:
    """Number, name, and the form that begins with the number."""
    tag = struct.__struct_config__.tag
    assert re.search(rf"^\| {tag} \| {words(struct.__name__)} \| `\[{tag}[\],]", PROTOCOL, re.MULTILINE)


@pytest.mark.parametrize("struct", [ClientHello, ServerHello, ClientAuth, Ready], ids=lambda each: each.__name__)
def test_handshake_messages_have_their_numbers(struct: Any) -> None:
    """1 to 4, in the block of section 2."""
    assert re.search(rf"^{struct.__name__} .*\[{struct.__struct_config__.tag}, ", PROTOCOL, re.MULTILINE)


CONTEXTS: Final = [
    *(transcript.TH1_CONTEXT, transcript.TH2_CONTEXT, transcript.TH3_CONTEXT),
    *(transcript.SERVER_AUTH_PREFIX, transcript.DEVICE_AUTH_PREFIX, transcript.HANDSHAKE_INFO, transcript.SESSION_INFO),
    *(event.EVENT_PREFIX, chain.EVENT_HASH_CONTEXT, chain.CHAIN_0_CONTEXT, chain.CHAIN_CONTEXT, chain.HEAD_PREFIX),
    *(
        account_payloads.ROOT_PREFIX,
        account_payloads.NEXT_ROOT_CONTEXT,
        succession.SERVER_KEY_PREFIX,
    ),
    *(
        rewind.REWIND_PREFIX,
        receipt.RECEIPT_PREFIX,
        challenge.REST_AUTH_PREFIX,
        crypto.REKEY_INFO,
        "keepstep/v1/content-key",
    ),
    *(linking.COMMIT_CONTEXT, linking.TH1_CONTEXT, linking.TH2_CONTEXT, linking.TH3_CONTEXT, linking.CODE_CONTEXT),
    *(linking.KEYS_INFO, linking.DEVICE_PREFIX, livesealing.PRESENCE_LABEL, livesealing.SIGNAL_LABEL),
]


def test_domain_strings_are_the_documents() -> None:
    """Each context and prefix of the code is quoted once in form, and the document has no others."""
    quoted = set(re.findall(r'"(keepstep/v1/[^"]+)"', PROTOCOL))
    in_code = {each.decode().replace("\0", r"\0") if isinstance(each, bytes) else each for each in CONTEXTS}
    assert quoted == in_code
    assert len(in_code) == len(CONTEXTS)


def test_limits_are_the_documents() -> None:
    """Sizes and counts that the document states."""
    for number, text in (
        (messages.PUBLISH_EVENTS_MAX, "1 to 256 events"),
        (messages.PUBLISH_BYTES_MAX // 1024**2, "at most 1 MiB of them"),
        (messages.MESSAGE_BYTES_MAX // 1024**2, "A message is at most 2 MiB"),
        (messages.HANDSHAKE_MESSAGE_BYTES_MAX // 1024, "at most 4 KiB a"),
        (messages.READ_EVENTS_MAX, "(1 to 1,000)"),
        (messages.SUBSCRIBE_STREAMS_MAX, "at most 1,024 streams"),
        (event.TTL_S_MAX, "1 to 3,153,600,000"),
        (keys.WRAPPED_BYTES, "112 bytes each"),
        (account_payloads.ACCOUNT_PAYLOAD_BYTES_MAX // 1024, "at most 256 KiB"),
        (account.MANAGE_COOL_DOWN_MS // 3_600_000, "24 hours"),
        (messages.SIGNAL_BYTES_MAX // 1024, "at most 16 KiB for one other device"),
        (messages.PRESENCE_BYTES_MAX // 1024, "at most 4 KiB; the last one"),
        (linking.MESSAGES_MAX - 1, "messages 0 to 7 of each side"),
    ):
        assert f"{number:,}" in text
        assert text in PROTOCOL


# -- handshake.vp


def assignment(name: str) -> list[str]:
    """What the model hashes or derives into a value."""
    (arguments,) = re.findall(rf"^ *{name} = \w+\((.*)\)$", MODEL, re.MULTILINE)
    return [each.strip() for each in str(arguments).split(",")]


def test_labels_of_the_model_are_those_of_the_code() -> None:
    """The comment that maps the model's labels to domain strings is right."""
    labels = dict(re.findall(r"^// (l_\w+) = (\S+)$", MODEL, re.MULTILINE))
    assert labels == {
        "l_server": transcript.SERVER_AUTH_PREFIX.decode().rstrip("\0"),
        "l_device": transcript.DEVICE_AUTH_PREFIX.decode().rstrip("\0"),
        "l_hs": transcript.HANDSHAKE_INFO.decode(),
        "l_ap": transcript.SESSION_INFO.decode(),
    }


@pytest.mark.parametrize("side", ["s", "d"])
def test_the_first_transcript_of_the_model_is_in_the_codes_order(side: str) -> None:
    """ClientHello and the server's core hold the model's values one after the other."""
    client = make_client()
    hello = client.hello()
    core = messages.decode_server_hello(make_server().receive_hello(hello)).core
    values = {
        "c_eph": crypto.x25519_public(seed("device ephemeral")),
        "c_nonce": seed("device nonce"),
        "s_eph": crypto.x25519_public(seed("server ephemeral")),
        "s_nonce": seed("server nonce"),
        "srv_pk": SERVER_KEY,
    }
    names = assignment(f"{side}_th1")
    places = [(hello + core).index(values[name]) for name in names]
    assert places == sorted(places)
    assert set(names) == set(values)


class Recorder:
    """Primitives that only write down what they are given."""

    def blake3_derive(self, _: str, data: bytes) -> bytes:
        """What would be hashed."""
        return data

    def hkdf_sha256(self, salt: bytes, ikm: bytes, info: bytes, length: int) -> bytes:
        """What would be derived from, in the model's order, then filler."""
        return b",".join((salt, ikm, info)).ljust(length, b".")


@pytest.mark.parametrize("side", ["s", "d"])
def test_later_transcripts_and_keys_of_the_model_are_the_codes(side: str) -> None:
    """th2, th3 and both key derivations take the same inputs in the same order."""
    recorder: Any = Recorder()
    second = [each.removeprefix("s_") for each in assignment(f"{side}_th2")]
    assert [each.removeprefix("d_") for each in second] == ["th1", "sig", "core"]
    assert transcript.th2(recorder, b"th1", b"sig", b"core") == b"th1sigcore"
    third = [each.removeprefix(f"{side}_") for each in assignment(f"{side}_th3")]
    assert third == ["th2", "c_sig"]
    assert transcript.th3(recorder, b"th2", b"c_sig") == b"th2c_sig"
    assert assignment(f"{side}_hs_c, {side}_hs_s") == [f"{side}_th1", f"{side}_dh", "l_hs"]
    assert transcript.handshake_key(recorder, b"th1", b"dh").startswith(b"th1,dh,keepstep/v1/hs")
    assert assignment(f"{side}_ap_c, {side}_ap_s") == [f"{side}_th3", f"{side}_dh", "l_ap"]
    assert transcript.session_keys(recorder, b"th3", b"dh").device.startswith(b"th3,dh,keepstep/v1/ap")


def test_what_the_model_seals_is_sealed_so_by_the_code() -> None:
    """ClientAuth under hs_c with th1; Ready under ap_s and the device's records under ap_c with th3; from counter 0."""
    assert assignment("client_auth") == ["d_hs_c", "n_0", "c_plain", "d_th1"]
    assert assignment("sealed_ready") == ["s_ap_s", "n_0", "ready", "s_th3"]
    assert assignment("sealed_publish") == ["d_ap_c", "n_0", "publish", "d_th3"]

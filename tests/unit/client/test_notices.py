"""What a person reads of a notice."""

from __future__ import annotations

import pytest

from keepstep.client import Capability, DeviceInfo, Notice, NoticeKind
from keepstep.client.notices import describe_notice

PHONE = DeviceInfo(b"p" * 16, "phone", Capability.PUBLISH, 0, 0, None)


@pytest.mark.parametrize(
    "kind", [kind for kind in NoticeKind if kind not in (NoticeKind.NO_CHECKPOINT, NoticeKind.RESTORED)]
)
def test_a_notice_names_the_device(kind: NoticeKind) -> None:
    """By its name, or by its id where the name does not open."""
    notice = Notice(kind, 1_760_000_000_000, PHONE.device_id, 1_760_086_400_000)
    assert "phone" in describe_notice(notice, [PHONE], "keepstep")
    assert PHONE.device_id.hex() in describe_notice(notice, [], "keepstep")


def test_a_notice_says_what_to_do() -> None:
    """With the command as it was called; and until when."""
    enrolled = describe_notice(Notice(NoticeKind.ENROLLED, 0, PHONE.device_id), [PHONE], "bin/keepstep")
    assert enrolled.endswith("If that was not you: bin/keepstep device revoke phone")
    pending = describe_notice(Notice(NoticeKind.MANAGE_PENDING, 0, PHONE.device_id, 1_760_000_000_000), [PHONE], "")
    assert "from 2025-10-0" in pending


def test_a_time_that_no_calendar_has_is_no_trouble() -> None:
    """A server may state it."""
    shown = describe_notice(Notice(NoticeKind.NO_CHECKPOINT, 2**53), [], "keepstep")
    assert shown.startswith("9999-12-3")

"""The codes of faults: documented, and each one found by some test."""

from __future__ import annotations

from pathlib import Path

from keepstep.verification.faults import FAULT_CODES, FAULTS_LISTED_MAX, Fault, Faults, Found, Report, reference

TESTS = Path(__file__).parents[2]


def test_the_reference_is_the_table() -> None:
    """``python -c 'from keepstep.verification.faults import reference; print(reference(), end="")'`` writes it."""
    document = TESTS.parent / "docs" / "reference" / "verify-faults.md"
    assert document.read_text(encoding="utf-8") == reference()


def test_each_code_is_injected_by_a_test() -> None:
    """What nobody has ever seen found is not found."""
    files = [
        *TESTS.glob("integration/postgres/test_verification*.py"),
        *TESTS.glob("integration/postgres/test_archive*.py"),
        *Path(__file__).parent.glob("test_*.py"),
    ]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert [code for code in FAULT_CODES if f'"{code}"' not in text] == []


def test_a_fault_is_one_line_with_its_place() -> None:
    """What it has of it."""
    assert str(Fault("bad_signature", b"\xab" * 32, "notes", 7, "why")) == (
        f"bad_signature: user {'ab' * 32} stream notes seq 7: why"
    )
    assert str(Fault("epoch_differs", b"\xab" * 32, None, None, "why")) == f"epoch_differs: user {'ab' * 32}: why"
    assert str(Fault("stray_rows", None, None, None, "why")) == "stray_rows: why"


def test_all_are_counted_and_the_first_are_kept() -> None:
    """A torn table does not fill the memory."""
    found = Found()
    faults = Faults(bytes(32), None, found).of("notes")
    for seq in range(FAULTS_LISTED_MAX + 5):
        faults.add("bad_signature", seq, "")
    assert (len(found.faults), found.count) == (FAULTS_LISTED_MAX, FAULTS_LISTED_MAX + 5)
    assert (found.faults[3].stream, found.faults[3].seq) == ("notes", 3)


def test_the_rate_is_of_what_was_read() -> None:
    """None where it took no time."""
    assert Report(1, 1, 3000, 2.0, (), 0).events_per_s == 1500
    assert Report(0, 0, 0, 0.0, (), 0).events_per_s == 0

"""Checks a split certificate again from the files of its run."""

from __future__ import annotations

from dataclasses import dataclass

from defectory.artifacts.certificate import Certificate
from defectory.errors import InputError, StageError
from defectory.events import finish
from defectory.runs import layout
from defectory.runs.stage import Run
from defectory.stages.certify import certificate_of


@dataclass(frozen=True, kw_only=True)
class CertificateCheck:
    """The outcome of a second check.

    Attributes:
        seal: of the certificate; empty if it cannot be read.
        num_uses: number of consumers that were checked.
        crossed: where the split was crossed, one line each.
        broken: everything that is wrong, files that changed included; empty if the split holds and the certificate is
            the same.
    """

    seal: str
    num_uses: int
    crossed: tuple[str, ...]
    broken: tuple[str, ...]


def check_certificate(run: Run) -> CertificateCheck | None:
    """Make the certificate once more, and compare it with the stored one; None if there is none."""
    path = run.store().path(layout.CERTIFICATE, layout.CERTIFICATE_FILE)
    if not path.is_file():
        return None
    try:
        stored = Certificate.load(path)
    except InputError as error:
        return CertificateCheck(seal="", num_uses=0, crossed=(), broken=(str(error),))
    try:
        found = finish(certificate_of(run.store(), run.config))
    except (InputError, StageError) as error:
        return CertificateCheck(seal=stored.seal, num_uses=0, crossed=(), broken=(str(error),))
    broken = found.broken
    if not broken and found.seal != stored.seal:
        broken = (f"{path}: the files of the run have other digests than when it was sealed; run the stage `certify`",)
    return CertificateCheck(seal=stored.seal, num_uses=len(found.uses), crossed=found.crossed, broken=broken)

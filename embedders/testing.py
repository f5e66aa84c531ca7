"""`check_embedder` for your own test suite: check that a class keeps the contract of `ImageEmbedder`.

Example:
    def test_my_embedder_keeps_the_contract():
        findings = check_embedder(MyEmbedder, "some.tar")
        assert [str(finding) for finding in findings if finding.is_wrong] == []
"""

from embedders.checks.contract import Speed, check_embedder
from embedders.checks.loader_contract import Finding

__all__ = ["Finding", "Speed", "check_embedder"]

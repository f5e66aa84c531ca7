"""`check_embedder`, for a test suite of your own: does a class keep the contract of `ImageEmbedder`?

def test_my_embedder_keeps_the_contract():
findings = check_embedder(MyEmbedder, "some.tar")
assert [str(finding) for finding in findings if finding.is_wrong] == []
"""

from embedders.checks.contract import Speed, check_embedder
from embedders.checks.loader_contract import Finding

__all__ = ["Finding", "Speed", "check_embedder"]

"""What each value of a traced graph is, and the quantizers and protection that go there."""

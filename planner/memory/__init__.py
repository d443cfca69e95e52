"""Verified plan memory: what was measured to win is replayed, what lost is not tried again."""

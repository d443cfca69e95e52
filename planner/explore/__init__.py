"""Trying ways of planning a statement on a real server: what each arm's plan is and what it takes."""

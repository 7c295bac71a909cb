"""Jobs, plans, events and mailboxes, which cross threads; and the planner."""

"""What crosses threads: jobs, plans, events and mailboxes; and the planner."""

"""What was spent: windows, work and prices become accounts that add up, kept in a database."""

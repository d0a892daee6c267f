"""Who may send requests, how many, and for how much: tenants, keys, rate limits, budgets."""

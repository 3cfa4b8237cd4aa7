"""Device tiers as data: budgets, formats, schemes, profiles."""

"""Pictures for people: what was there, what was found."""

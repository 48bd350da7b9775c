"""How attention is executed: one meaning, several speeds, and the plan that chooses."""

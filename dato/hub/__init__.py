"""Share fronts: repositories of the Hugging Face hub and their cards. It takes and gives dictionaries."""

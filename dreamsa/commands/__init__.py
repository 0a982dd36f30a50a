"""Groups of commands and what they share; `dreamsa.cli` holds the verbs."""

"""The audit of demographic groups: what the instruments read in faces, and what follows from it, with its error."""

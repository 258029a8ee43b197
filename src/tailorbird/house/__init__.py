"""The model house: blocks of the teacher and all that can stand in for them (Bespoke)."""

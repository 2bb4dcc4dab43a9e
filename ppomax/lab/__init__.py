"""The lab: one experiment a claim of the paper (section 6 of it, and lab/*.yaml). Only the command line imports it."""

"""Small models, one difficulty each, for the tests of discovery."""

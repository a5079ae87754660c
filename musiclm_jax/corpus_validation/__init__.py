"""What is in a corpus, and what is wrong with it: tools/validate_corpus.py."""

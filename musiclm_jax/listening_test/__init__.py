"""L5. Pairwise listening tests as in MusicLM, 4.4 and appendix B: web pages and a report."""

"""Check of a folder of images before a network is trained on it: findings, figures, and a page with contact sheets."""

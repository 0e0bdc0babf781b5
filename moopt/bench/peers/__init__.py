"""The loops of others, as their documentation writes them; one library a file. Nothing of ours helps them."""

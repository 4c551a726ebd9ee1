"""The page in HTML, over the same services as the API."""

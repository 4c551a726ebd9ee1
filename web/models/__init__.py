"""What the API says and hears, in camelCase, with an example of each."""

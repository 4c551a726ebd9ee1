"""The doors that speak HTTP: the API for applications and the page for people, in one app."""

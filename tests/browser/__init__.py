"""The page in headless Chromium, on a site with real workers."""

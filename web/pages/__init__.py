"""The page: what people see and click. It calls what the API calls, and answers in HTML."""

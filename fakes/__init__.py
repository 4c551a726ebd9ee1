"""Stand-ins for the servers that Imprint talks to: ai-toolkit, RunPod, ComfyUI.

For tests, demos and development; they are not in the wheel.
"""

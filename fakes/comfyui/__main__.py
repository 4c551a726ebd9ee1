from fakes.comfyui.command import fake_comfyui

fake_comfyui.main(prog_name="fake-comfyui")

"""`python -m diffusion_lab COMMAND` is the same as the console command `diffusion-lab COMMAND`."""

from diffusion_lab.commands.console import main

if __name__ == "__main__":
    main("python -m diffusion_lab")

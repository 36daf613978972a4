from diffusion_lab.commands.prepare import main

if __name__ == "__main__":
    main()

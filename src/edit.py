from diffusion_lab.commands.edit import main

if __name__ == "__main__":
    main()

from diffusion_lab.commands.sample import main

if __name__ == "__main__":
    main()

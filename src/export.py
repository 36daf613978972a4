from diffusion_lab.commands.export import main

if __name__ == "__main__":
    main()

from diffusion_lab.commands.verify import main

if __name__ == "__main__":
    main()

from diffusion_lab.commands.evaluate import main

if __name__ == "__main__":
    main()

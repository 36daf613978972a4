from diffusion_lab.commands.inspect_data import main

if __name__ == "__main__":
    main()

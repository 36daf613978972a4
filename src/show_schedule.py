from diffusion_lab.commands.show_schedule import main

if __name__ == "__main__":
    main()

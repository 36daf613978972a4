from diffusion_lab.commands.reconstruct_ema import main

if __name__ == "__main__":
    main()

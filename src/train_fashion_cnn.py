from diffusion_lab.commands.train_fashion_cnn import main

if __name__ == "__main__":
    main()

// Two goroutines, each on a thread of its own if it likes, pass a number to and fro: ROUNDS.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	rounds := 1000000
	if len(os.Args) > 1 {
		rounds, _ = strconv.Atoi(os.Args[1])
	}
	ping, pong := make(chan int), make(chan int)
	go func() {
		for n := range ping {
			pong <- n + 1
		}
		close(pong)
	}()
	n := 0
	for i := 0; i < rounds; i++ {
		ping <- n
		n = <-pong
	}
	close(ping)
	fmt.Println(n)
}

// Goroutines on several threads: channels, mutexes, a race, garbage collection while they run, timers, panics.
package main

import (
	"fmt"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type node struct {
	left, right *node
	value       int
}

func tree(depth, value int) *node {
	if depth == 0 {
		return nil
	}
	return &node{tree(depth-1, 2*value), tree(depth-1, 2*value+1), value}
}

func (n *node) sum() int {
	if n == nil {
		return 0
	}
	return n.value + n.left.sum() + n.right.sum()
}

func main() {
	var wait sync.WaitGroup
	var mutex sync.Mutex
	var exact int64
	racy, order := 0, []string{}
	jobs, results := make(chan int, 4), make(chan int)
	for worker := 0; worker < 6; worker++ {
		wait.Add(1)
		go func(worker int) {
			defer wait.Done()
			for job := range jobs {
				racy++
				atomic.AddInt64(&exact, 1)
				results <- tree(8, job).sum()
				if job%20 == 0 {
					mutex.Lock()
					order = append(order, fmt.Sprintf("%d:%d", worker, job))
					mutex.Unlock()
				}
			}
		}(worker)
	}
	go func() {
		for job := 0; job < 400; job++ {
			jobs <- job
		}
		close(jobs)
		wait.Wait()
		close(results)
	}()
	total := 0
	for result := range results {
		total += result
	}
	runtime.GC()

	// Ping-pong without buffers, and a loop that only a signal can interrupt.
	ping, pong := make(chan int), make(chan int)
	go func() {
		for n := range ping {
			pong <- n + 1
		}
		close(pong)
	}()
	n := 0
	for i := 0; i < 2000; i++ {
		ping <- n
		n = <-pong
	}
	close(ping)
	var stop int32
	spun := make(chan int)
	go func() {
		count := 0
		for atomic.LoadInt32(&stop) == 0 {
			count++
		}
		spun <- count
	}()
	timer := time.NewTimer(3 * time.Millisecond)
	select {
	case <-timer.C:
	case <-time.After(10 * time.Second):
	}
	atomic.StoreInt32(&stop, 1)
	count := <-spun
	func() {
		defer func() { fmt.Println("recovered", recover() != nil) }()
		var nothing *node
		fmt.Println(nothing.value)
	}()
	workers := map[string]int{}
	for _, o := range order {
		workers[strings.SplitN(o, ":", 2)[0]]++
	}
	names := []string{}
	for name := range workers {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Println(total, exact, racy, order, names, n, count > 0)
	if exact != 400 || n != 2000 {
		panic("lost something")
	}
}

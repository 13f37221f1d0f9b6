// Goroutines whose small stacks are nearly full make system calls; what lies on the stacks stays as it was.
package main

// #include <unistd.h>
import "C"
import (
	"fmt"
	"sync"
	"syscall"
)

//go:noinline
func one(n int) int {
	var a [16]int
	for i := range a {
		a[i] = n * (i + 1)
	}
	syscall.Close(-1)
	syscall.Open("/nonexistent", 0, 0)
	s := 0
	for i := range a {
		if a[i] != n*(i+1) {
			panic("stack changed")
		}
		s += a[i]
	}
	return s
}

func main() {
	C.getpid()
	var w sync.WaitGroup
	var m sync.Mutex
	total := 0
	for g := 0; g < 400; g++ {
		w.Add(1)
		go func(g int) {
			defer w.Done()
			t := 0
			for i := 0; i < 50; i++ {
				t += one(g + i)
			}
			m.Lock()
			total += t
			m.Unlock()
		}(g)
	}
	w.Wait()
	fmt.Println(total)
}

package keepstep

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const (
	eventBytesMax = 2 * 1024 * 1024
	microseconds  = 1e3
)

// Received is one event of a text/event-stream.
type Received struct {
	ID   string `js:"id"`
	Name string `js:"name"`
	Data string `js:"data"`
	// AtMs is the clock when it had arrived, with a fraction.
	AtMs float64 `js:"at_ms"`
}

// Followed is what came of following.
type Followed struct {
	Status int        `js:"status"`
	Events []Received `js:"events"`
	// FirstByteMs is how long the answer's beginning took.
	FirstByteMs float64 `js:"first_byte_ms"`
	Error       string  `js:"error"`
}

// follow reads server-sent events until count of them are there, the server ends, or timeoutMs are over. It holds up its
// own virtual user only, and ends with it.
func (module *Module) follow(url, token string, count int, timeoutMs int64) Followed {
	ctx, cancel := context.WithTimeout(module.vu.Context(), time.Duration(timeoutMs)*time.Millisecond)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Followed{Error: err.Error()}
	}
	request.Header.Set("Accept", "text/event-stream")
	request.Header.Set("Authorization", "Bearer "+token)
	begin := time.Now()
	// A connection of its own, as every follower has.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return Followed{Error: err.Error()}
	}
	defer func() { _ = answer.Body.Close() }()
	followed := Followed{Status: answer.StatusCode, FirstByteMs: milliseconds(time.Since(begin))}
	if answer.StatusCode != http.StatusOK {
		return followed
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, eventBytesMax)
	followed.Events, err = readEvents(lines, count, func() float64 { return milliseconds(time.Duration(time.Now().UnixNano())) })
	if err != nil && ctx.Err() == nil {
		followed.Error = fmt.Sprintf("the events ended: %v", err)
	}
	return followed
}

// readEvents reads up to count events, as the HTML standard has them in section 9.2.
func readEvents(lines *bufio.Scanner, count int, nowMs func() float64) ([]Received, error) {
	var events []Received
	current := Received{}
	for len(events) < count && lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case lines.Text() == "" && current.Data != "":
			current.AtMs = nowMs()
			current.Data = strings.TrimSuffix(current.Data, "\n")
			events = append(events, current)
			current = Received{}
		case field == "id":
			current.ID = value
		case field == "event":
			current.Name = value
		case field == "data":
			current.Data += value + "\n"
		}
	}
	return events, lines.Err()
}

func milliseconds(duration time.Duration) float64 {
	return float64(duration.Microseconds()) / microseconds
}

package main

// The command line of client.go: put, get, delete, incr, end; and call, by which tests drive it.
// Exit status: 0 done, 1 NOT_FOUND or CONFLICT, 2 usage or any other failure, 3 no answer in time.

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

var errUsage = errors.New("put KEY VALUE, get KEY, delete KEY, incr KEY [BY], end, call")

func readValue(word string) (interface{}, error) {
	if word != "-" {
		return word, nil
	}
	data, err := io.ReadAll(os.Stdin)
	if err == nil && utf8.Valid(data) {
		return string(data), nil
	}
	return data, err
}

func printValue(value interface{}) {
	switch value := value.(type) {
	case string:
		fmt.Println(value)
	case []byte:
		os.Stdout.Write(append(value, '\n'))
	default:
		if text, err := json.Marshal(value); err == nil {
			fmt.Println(string(text))
		} else {
			fmt.Printf("%v\n", value) // a map whose keys JSON does not know
		}
	}
}

func callEach(c *Client) error {
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			return nil
		}
		body, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			return err
		}
		value, err := unpack(body)
		request, ok := value.(Fields)
		if err != nil || !ok {
			return fmt.Errorf("no request: %v", err)
		}
		op, _ := request["op"].(string)
		delete(request, "op")
		reply, err := c.Call(op, request)
		var failure *Error
		if errors.As(err, &failure) {
			if reply = failure.Reply; reply == nil {
				reply = Fields{"ok": false, "code": failure.Code, "message": failure.Message,
					"retry": failure.Retry, "applied": nil}
				if !failure.Unknown {
					reply["applied"] = false
				}
			}
		} else if err != nil {
			return err
		}
		packed, err := pack(reply)
		if err != nil {
			return err
		}
		fmt.Println(hex.EncodeToString(packed))
	}
}

func run(c *Client, words []string) (err error) {
	rev := int64(-1)
	switch command := strings.ToLower(words[0]); {
	case command == "put" && len(words) == 3:
		var value interface{}
		if value, err = readValue(words[2]); err == nil {
			rev, err = c.Put(words[1], value)
		}
	case command == "get" && len(words) == 2:
		var value interface{}
		if value, err = c.Get(words[1]); err == nil {
			printValue(value)
		}
	case command == "delete" && len(words) == 2:
		rev, err = c.Delete(words[1])
	case command == "incr" && (len(words) == 2 || len(words) == 3):
		by := int64(1)
		if len(words) == 3 {
			by, err = strconv.ParseInt(words[2], 10, 64)
		}
		if err == nil {
			by, err = c.Incr(words[1], by)
		}
		if err == nil {
			fmt.Println(by)
		}
	case command == "end" && len(words) == 1:
		rev, err = c.End()
	case command == "call" && len(words) == 1:
		return callEach(c)
	default:
		return errUsage
	}
	if err == nil && rev >= 0 {
		fmt.Fprintf(os.Stderr, "OK, revision %d\n", rev)
	}
	return err
}

func status(err error) int {
	var failure *Error
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &failure):
		return 2
	case failure.Code == "NO_REPLY":
		return 3
	case failure.Code == "NOT_FOUND" || failure.Code == "CONFLICT":
		return 1
	}
	return 2
}

func main() {
	endpoint := os.Getenv("ZKV_ENDPOINT")
	if endpoint == "" {
		endpoint = "tcp://127.0.0.1:5555"
	}
	flag.StringVar(&endpoint, "e", endpoint, "where the server is")
	timeout := flag.Float64("timeout", 5, "seconds for each attempt")
	flag.Parse()
	client, err := Connect(endpoint, time.Duration(*timeout*float64(time.Second)))
	if err == nil && flag.NArg() > 0 {
		err = run(client, flag.Args())
		client.Close()
	} else if err == nil {
		err = errUsage
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
	}
	os.Exit(status(err))
}

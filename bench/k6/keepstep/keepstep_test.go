package keepstep

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

type vector struct {
	Origin       string `json:"origin"`
	Purpose      string `json:"purpose"`
	ServerKey    string `json:"server_key"`
	UserKey      string `json:"user_key"`
	DeviceID     string `json:"device_id"`
	DeviceSecret string `json:"device_secret"`
	Nonce        string `json:"nonce"`
	SigningInput string `json:"signing_input"`
	Signature    string `json:"signature"`
}

func TestChallengesAreSignedAsTheVectorsHaveThem(t *testing.T) {
	content, err := os.ReadFile("../../../tests/vectors/challenge.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(content, &vectors); err != nil || len(vectors) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	for _, each := range vectors {
		nonce, _ := hex.DecodeString(each.Nonce)
		device := Device{UserID: each.UserKey, DeviceID: each.DeviceID, Secret: each.DeviceSecret, ServerKey: each.ServerKey}
		encoded := base64.RawURLEncoding.EncodeToString(nonce)
		signed, err := statement(device, each.Origin, encoded, each.Purpose)
		if err != nil || hex.EncodeToString(signed) != each.SigningInput {
			t.Errorf("%s: %x, %v", each.Purpose, signed, err)
		}
		proof, err := signChallenge(device, each.Origin, encoded, each.Purpose)
		found, _ := base64.RawURLEncoding.DecodeString(proof.Signature)
		if err != nil || hex.EncodeToString(found) != each.Signature {
			t.Errorf("%s: %x, %v", each.Purpose, found, err)
		}
	}
}

func TestWhatIsNoKeyIsRefused(t *testing.T) {
	for _, device := range []Device{{}, {Secret: strings.Repeat("00", 32)}, {Secret: "xy"}} {
		if _, err := signChallenge(device, "http://a", "AAAA", "token"); err == nil {
			t.Errorf("%v was taken", device)
		}
	}
}

func TestEventsAreReadAsTheyCome(t *testing.T) {
	stream := "retry: 1000\n\n: a comment\n\nid: 1\nevent: event\ndata: {\"a\":1}\n\nid: 2\ndata: b\ndata: c\n\nid: 3\ndata: cut"
	events, err := readEvents(bufio.NewScanner(strings.NewReader(stream)), 10, func() float64 { return 5 })
	if err != nil || len(events) != 2 {
		t.Fatalf("%v, %v", events, err)
	}
	if events[0] != (Received{ID: "1", Name: "event", Data: "{\"a\":1}", AtMs: 5}) || events[1].Data != "b\nc" {
		t.Errorf("%v", events)
	}
	one, err := readEvents(bufio.NewScanner(strings.NewReader(stream)), 1, func() float64 { return 5 })
	if err != nil || len(one) != 1 {
		t.Errorf("%v, %v", one, err)
	}
}
